"""fxloom.hw_templates"""

if __name__ != "fxloom.hw_templates":
    raise ImportError("import fxloom.hw_templates")
