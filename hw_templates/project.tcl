# Read by build_prj.tcl and vivado_synth.tcl.
variable project_name
set project_name "@PROJECT@"
variable backend
set backend "@BACKEND@"
variable part
set part "@PART@"
variable clock_period
set clock_period @CLOCK_NS@
variable clock_uncertainty
set clock_uncertainty @UNCERTAINTY@
variable version
set version "1.0.0"
variable maximum_size
set maximum_size 4096
