"""fxloom"""

if __name__ != "fxloom":
    raise ImportError("import fxloom")
