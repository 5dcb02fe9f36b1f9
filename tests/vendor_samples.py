"""Reports as the vendors' tools write them, short and with numbers of our own.

Layout and labels are those of Vitis HLS 2023.2, Vivado 2023.2, Quartus 22.1 and Intel HLS 22.4; the
designs were never synthesised. `mlp` is the project of examples that the README compiles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

RESOURCES = ("BRAM_18K", "DSP", "FF", "LUT", "URAM")


def csynth_xml(
    name: str,
    used: Sequence[int],
    latency: tuple[int, int] = (3, 3),
    interval: tuple[int, int] = (1, 1),
    *,
    part: str = "xc7z020clg400-1",
    clock: str = "5.00",
    version: str = "2023.2",
    rest: str = "",
) -> str:
    """One function's NAME_csynth.xml. used: in the order of RESOURCES."""
    dsp = "DSP48E" if version < "2020" else "DSP"
    rows = "".join(
        f"<{tag}>{count}</{tag}>\n"
        for tag, count in zip([RESOURCES[0], dsp, *RESOURCES[2:]], used, strict=True)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<profile>
<ReportVersion>
<Version>{version}</Version>
</ReportVersion>
<UserAssignments>
<unit>ns</unit>
<ProductFamily>zynq</ProductFamily>
<Part>{part}</Part>
<TopModelName>{name}</TopModelName>
<TargetClockPeriod>{clock}</TargetClockPeriod>
<ClockUncertainty>1.35</ClockUncertainty>
<FlowTarget>vivado</FlowTarget>
</UserAssignments>
<PerformanceEstimates>
<PipelineType>yes</PipelineType>
<SummaryOfTimingAnalysis>
<unit>ns</unit>
<EstimatedClockPeriod>3.414</EstimatedClockPeriod>
</SummaryOfTimingAnalysis>
<SummaryOfOverallLatency>
<unit>clock cycles</unit>
<Best-caseLatency>{latency[0]}</Best-caseLatency>
<Average-caseLatency>{latency[0]}</Average-caseLatency>
<Worst-caseLatency>{latency[1]}</Worst-caseLatency>
<Best-caseRealTimeLatency>15.000 ns</Best-caseRealTimeLatency>
<Interval-min>{interval[0]}</Interval-min>
<Interval-max>{interval[1]}</Interval-max>
</SummaryOfOverallLatency>
<SummaryOfLoopLatency>
</SummaryOfLoopLatency>
</PerformanceEstimates>
<AreaEstimates>
<Resources>
{rows}</Resources>
<AvailableResources>
<BRAM_18K>280</BRAM_18K>
<{dsp}>220</{dsp}>
<FF>106400</FF>
<LUT>53200</LUT>
<URAM>0</URAM>
</AvailableResources>
</AreaEstimates>
<InterfaceSummary>
<RtlPorts>
<name>ap_clk</name>
<Object>{name}</Object>
<Type>return value</Type>
<Dir>in</Dir>
<Bits>1</Bits>
</RtlPorts>
</InterfaceSummary>
{rest}</profile>
"""


def module_list(modules: Mapping[str, Sequence[int]], tree: Mapping[str, Sequence[str]]) -> str:
    """What csynth.xml has besides: the hierarchy below `myproject`, and every module in it."""

    def instances(name: str) -> str:
        inner = "".join(
            f"<Instance>\n<InstName>grp_{child}_fu_{number}</InstName>\n"
            f"<ModuleName>{child}</ModuleName>\n<ID>{number}</ID>\n{instances(child)}</Instance>\n"
            for number, child in enumerate(tree.get(name, ()), 40)
        )
        return f"<InstancesList>\n{inner}</InstancesList>\n" if inner else ""

    listed = "".join(
        f"<Module>\n<Name>{name}</Name>\n<Loops>\n</Loops>\n<PerformanceEstimates>\n"
        "<SummaryOfTimingAnalysis>\n<TargetClockPeriod>5.00</TargetClockPeriod>\n"
        "<EstimatedClockPeriod>3.414</EstimatedClockPeriod>\n</SummaryOfTimingAnalysis>\n"
        "<SummaryOfOverallLatency>\n<Best-caseLatency>3</Best-caseLatency>\n"
        "<Average-caseLatency>3</Average-caseLatency>\n<Worst-caseLatency>4</Worst-caseLatency>\n"
        "<PipelineInitiationInterval>1 ~ 2</PipelineInitiationInterval>\n"
        "<PipelineDepth>4</PipelineDepth>\n</SummaryOfOverallLatency>\n</PerformanceEstimates>\n"
        "<AreaEstimates>\n<Resources>\n"
        + "".join(
            f"<{tag}>{count}</{tag}>\n<AVAIL_{tag[:4].rstrip('_')}>9</AVAIL_{tag[:4].rstrip('_')}>\n"
            for tag, count in zip(RESOURCES, used, strict=True)
        )
        + "</Resources>\n</AreaEstimates>\n</Module>\n"
        for name, used in modules.items()
    )
    return (
        '<RTLDesignHierarchy>\n<TopModule MAX_DEPTH="2">\n<ModuleName>myproject</ModuleName>\n'
        f"{instances('myproject')}</TopModule>\n</RTLDesignHierarchy>\n"
        f"<ModuleInformation>\n{listed}</ModuleInformation>\n"
    )


MODULES: dict[str, tuple[int, int, int, int, int]] = {
    "dense_latency_ap_fixed_8_3_5_3_0_ap_fixed_19_5_5_3_0_config2_s": (0, 158, 2904, 9810, 0),
    "elementwise_config3_s": (0, 0, 0, 304, 0),
    "requantize_config4_s": (0, 0, 288, 270, 0),
    "dense_latency_ap_ufixed_8_2_5_3_0_ap_fixed_16_1_4_0_0_config5_s": (0, 69, 1310, 4005, 0),
}
"""Of the layers 0, 1 and 2 of nn.Sequential(Linear(16, 32), ReLU(), Linear(32, 5))."""

TOP = (0, 227, 4890, 14500, 0)
SYN = Path("hls/myproject_prj/solution1/syn/report")


def write_csynth(folder: Path, modules: Mapping[str, Sequence[int]] = MODULES) -> Path:
    """A syn/report of Vitis HLS below a build."""
    place = folder / SYN
    place.mkdir(parents=True, exist_ok=True)
    rest = module_list({"myproject": TOP, **modules}, {"myproject": tuple(modules)})
    (place / "csynth.xml").write_text(csynth_xml("myproject", TOP, (7, 7), rest=rest))
    for name, used in {"myproject": TOP, **modules}.items():
        cycles = (7, 7) if name == "myproject" else (3, 3)
        (place / f"{name}_csynth.xml").write_text(csynth_xml(name, used, cycles))
    return place


COSIM_REPORT = """\
Report time       : Mon Jan  8 10:09:10 UTC 2024.
Solution          : solution1.
Simulation tool   : xsim.

+----------+----------+-----------------------------------------------+-----------------------------------------------+----------------------+
|          |          |             Latency(Clock Cycles)             |              Interval(Clock Cycles)           | Total Execution Time |
+   RTL    +  Status  +-----------------------------------------------+-----------------------------------------------+    (Clock Cycles)    +
|          |          |      min      |      avg      |      max      |      min      |      avg      |      max      |                      |
+----------+----------+-----------------------------------------------+-----------------------------------------------+----------------------+
|      VHDL|        NA|             NA|             NA|             NA|             NA|             NA|             NA|                    NA|
|   Verilog|      Pass|              7|              7|              9|              1|              1|              2|                    31|
+----------+----------+-----------------------------------------------+-----------------------------------------------+----------------------+
"""  # noqa: E501

VIVADO_HEADER = """\
Copyright 1986-2022 Xilinx, Inc. All Rights Reserved. Copyright 2022-2023 Advanced Micro Devices, Inc. All Rights Reserved.
------------------------------------------------------------------------------------------------------------
| Tool Version : Vivado v.2023.2 (lin64) Build 4029153 Fri Oct 13 20:13:54 MDT 2023
| Date         : Mon Jan  8 10:11:12 2024
| Host         : host running 64-bit Linux
| Command      : report_utilization -file vivado_synth.rpt
| Design       : myproject
| Device       : xc7z020clg400-1
| Speed File   : -1
| Design State : Synthesized
------------------------------------------------------------------------------------------------------------

Utilization Design Information

"""  # noqa: E501

UTILIZATION = (
    VIVADO_HEADER
    + """\
Table of Contents
-----------------
1. Slice Logic
1.1 Summary of Registers by Type
2. Memory
3. DSP
4. IO and GT Specific

1. Slice Logic
--------------

+----------------------------+------+-------+------------+-----------+-------+
|          Site Type         | Used | Fixed | Prohibited | Available | Util% |
+----------------------------+------+-------+------------+-----------+-------+
| Slice LUTs*                | 7210 |     0 |          0 |     53200 | 13.55 |
|   LUT as Logic             | 7188 |     0 |          0 |     53200 | 13.51 |
|   LUT as Memory            |   22 |     0 |          0 |     17400 |  0.13 |
|     LUT as Distributed RAM |    0 |     0 |            |           |       |
|     LUT as Shift Register  |   22 |     0 |            |           |       |
| Slice Registers            | 3051 |     0 |          0 |    106400 |  2.87 |
|   Register as Flip Flop    | 3051 |     0 |          0 |    106400 |  2.87 |
| F7 Muxes                   |    0 |     0 |          0 |     26600 |  0.00 |
+----------------------------+------+-------+------------+-----------+-------+
* Warning! The Final LUT count, after physical optimizations and full implementation, is typically lower.


1.1 Summary of Registers by Type
--------------------------------

+-------+--------------+-------------+--------------+
| Total | Clock Enable | Synchronous | Asynchronous |
+-------+--------------+-------------+--------------+
| 0     |            _ |           - |            - |
| 3051  |          Yes |       Reset |            - |
+-------+--------------+-------------+--------------+


2. Memory
---------

+-------------------+------+-------+------------+-----------+-------+
|     Site Type     | Used | Fixed | Prohibited | Available | Util% |
+-------------------+------+-------+------------+-----------+-------+
| Block RAM Tile    |  4.5 |     0 |          0 |       140 |  3.21 |
|   RAMB36/FIFO*    |    4 |     0 |          0 |       140 |  2.86 |
|     RAMB36E1 only |    4 |       |            |           |       |
|   RAMB18          |    1 |     0 |          0 |       280 |  0.36 |
|     RAMB18E1 only |    1 |       |            |           |       |
+-------------------+------+-------+------------+-----------+-------+
* Note: Each Block RAM Tile only has one FIFO logic available.


3. DSP
------

+----------------+------+-------+------------+-----------+-------+
|    Site Type   | Used | Fixed | Prohibited | Available | Util% |
+----------------+------+-------+------------+-----------+-------+
| DSPs           |  198 |     0 |          0 |       220 | 90.00 |
|   DSP48E1 only |  198 |       |            |           |       |
+----------------+------+-------+------------+-----------+-------+


"""  # noqa: E501
)

HIERARCHY = (
    VIVADO_HEADER
    + """\
1. Utilization by Hierarchy
---------------------------

+----------------------------------------+------------------------------------------+------------+------------+---------+------+------+--------+--------+--------------+
|                Instance                |                  Module                  | Total LUTs | Logic LUTs | LUTRAMs | SRLs |  FFs | RAMB36 | RAMB18 | DSP48 Blocks |
+----------------------------------------+------------------------------------------+------------+------------+---------+------+------+--------+--------+--------------+
| myproject                              |                                    (top) |       7210 |       7188 |       0 |   22 | 3051 |      4 |      1 |          198 |
|   (myproject)                          |                                    (top) |        110 |         88 |       0 |   22 |  420 |      4 |      1 |            0 |
|   call_ret_elementwise_config3_s_fu_95 |          myproject_elementwise_config3_s |        150 |        150 |       0 |    0 |    0 |      0 |      0 |            0 |
|   grp_dense_latency_config2_s_fu_79    | myproject_dense_latency_ap_f_config2_s   |       4800 |       4800 |       0 |    0 | 1800 |      0 |      0 |          140 |
|     (grp_dense_latency_config2_s_fu_79)| myproject_dense_latency_ap_f_config2_s   |       4700 |       4700 |       0 |    0 | 1700 |      0 |      0 |            0 |
|     mul_8s_9ns_17_1_1_U1               |                myproject_mul_8s_9ns_17_1 |        100 |        100 |       0 |    0 |  100 |      0 |      0 |          140 |
|   grp_dense_latency_config5_s_fu_85    | myproject_dense_latency_ap_u_config5_s   |       2000 |       2000 |       0 |    0 |  700 |      0 |      0 |           58 |
|   grp_requantize_config4_s_fu_99       |           myproject_requantize_config4_s |        150 |        150 |       0 |    0 |  131 |      0 |      0 |            0 |
+----------------------------------------+------------------------------------------+------------+------------+---------+------+------+--------+--------+--------------+
"""  # noqa: E501
)

FIT_SUMMARY = """\
Fitter Status : Successful - Wed Nov  8 10:11:34 2023
Quartus Prime Version : 22.1std.2 Build 922 07/20/2023 SC Standard Edition
Revision Name : quartus_compile
Top-level Entity Name : quartus_compile
Family : Arria 10
Device : 10AX115S2F45I1SG
Timing Models : Final
Logic utilization (in ALMs) : 5,454 / 427,200 ( 1 % )
Total registers : 10350
Total pins : 0 / 960 ( 0 % )
Total virtual pins : 620
Total block memory bits : 16,384 / 55,562,240 ( < 1 % )
Total RAM Blocks : 4 / 2,713 ( < 1 % )
Total DSP Blocks : 88 / 1,518 ( 6 % )
Total PLLs : 0 / 112 ( 0 % )
"""

FIT_REPORT = """\
Fitter report for quartus_compile
Wed Nov  8 10:11:34 2023
Quartus Prime Version 22.1std.2 Build 922 07/20/2023 SC Standard Edition


---------------------
; Table of Contents ;
---------------------
  1. Legal Notice
  2. Fitter Summary
  3. Fitter Resource Usage Summary


+---------------------------------------------------------------------------------+
; Fitter Summary                                                                  ;
+---------------------------------+-----------------------------------------------+
; Fitter Status                   ; Successful - Wed Nov  8 10:11:34 2023         ;
; Quartus Prime Version           ; 22.1std.2 Build 922 07/20/2023 SC Std Edition ;
; Revision Name                   ; quartus_compile                               ;
; Top-level Entity Name           ; quartus_compile                               ;
; Family                          ; Arria 10                                      ;
; Device                          ; 10AX115S2F45I1SG                              ;
; Timing Models                   ; Final                                         ;
; Logic utilization (in ALMs)     ; 5,454 / 427,200 ( 1 % )                       ;
; Total registers                 ; 10350                                         ;
; Total block memory bits         ; 16,384 / 55,562,240 ( < 1 % )                 ;
; Total RAM Blocks                ; 4 / 2,713 ( < 1 % )                           ;
; Total DSP Blocks                ; 88 / 1,518 ( 6 % )                            ;
+---------------------------------+-----------------------------------------------+


+------------------------------------------------------------------------------------+
; Fitter Resource Usage Summary                                                      ;
+-------------------------------------------------------------+--------------+-------+
; Resource                                                    ; Usage        ; %     ;
+-------------------------------------------------------------+--------------+-------+
; Logic utilization (ALMs needed / total ALMs on device)      ; 5,454        ; 1 %   ;
; Combinational ALUT usage for logic                          ; 8,421        ;       ;
;     -- 7 input functions                                    ; 12           ;       ;
+-------------------------------------------------------------+--------------+-------+
"""

ACL_REPORT = """\
ALUTs: 8421
Registers: 10,350
Logic utilization: 5,454 / 427,200 ( 1 % )
I/O pins: 310 / 826 ( 38 % )
DSP blocks: 88 / 1,518 ( 6 % )
Memory bits: 16,384 / 55,562,240 ( < 1 % )
RAM blocks: 4 / 2,713 ( < 1 % )
Actual clock freq: 231
Kernel fmax: 231.75
1x clock fmax: 231.75
2x clock fmax: 10000
Highest non-global fanout: 1192
"""

QUARTUS_DATA = (
    'var quartusJSON={"quartusFitClockSummary":{"nodes":[{"name":"Quartus Fitter: Clock Frequency '
    '(MHz)","clock":"231.75","clock1x":"231.75","details":[{"type":"text","text":""}],"type":'
    '"system"}]},"quartusFitResourceUsageSummary":{"nodes":[{"type":"component","id":"1010",'
    '"name":"myproject","alm":"5454.3","reg":"10350","dsp":"88","ram":"4","mlab":"3"},{"type":"system",'
    '"id":"1000","name":"Quartus Fitter: Full Design (All Components)","alm":"5454.3",'
    '"reg":"10350","dsp":"88","ram":"4","mlab":"3"}]}};\n'
)

REPORT_DATA = r"""var loopsJSON={"columns":["","Pipelined","II"],"children":[]};
var areaJSON={"columns":["","ALUTs","FFs","RAMs","DSPs","MLABs","Details"],"debug_enabled":"true",
"type":"module","total_percent":[2.1,1.2,0.8,0.1,6],"total":[9120,13300,4,96,5],
"name":"Kernel System","max_resources":[854400,1708800,2713,1518,0],"children":[{
"name":"myproject","type":"function","data":[9120,13300,4,96,5],
"details":[{"type":"text","text":"the component\'s"}]}]};
var fileJSON=[{"path":"firmware/myproject.cpp"}];
"""

SUMMARY_NDJSON = """\
{"name":"Compile Info","parent":"summary"}
{"name":"Total","parent":"estimatedResources","data":[9120,13300,4,96,5]}
{"name":"Available","parent":"estimatedResources","data":[854400,1708800,2713,1518,0]}
"""

BUNDLED: dict[str, str] = {
    "myproject_csynth.xml": csynth_xml("myproject", TOP, (7, 7)),
    "csynth.xml": csynth_xml(
        "myproject", TOP, (7, 7), rest=module_list(MODULES, {"myproject": tuple(MODULES)})
    ),
    "myproject_cosim.rpt": COSIM_REPORT,
    "vivado_synth.rpt": UTILIZATION,
    "util.rpt": HIERARCHY,
    "quartus_compile.fit.summary": FIT_SUMMARY,
    "quartus_compile.fit.rpt": FIT_REPORT,
    "acl_quartus_report.txt": ACL_REPORT,
    "quartus_data.js": QUARTUS_DATA,
    "report_data.js": REPORT_DATA,
    "summary.ndjson": SUMMARY_NDJSON,
}
"""One file of every kind, by the name that tools give it."""
