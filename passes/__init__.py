"""fxloom.passes"""

if __name__ != "fxloom.passes":
    raise ImportError("import fxloom.passes")
