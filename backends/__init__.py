"""fxloom.backends"""

if __name__ != "fxloom.backends":
    raise ImportError("import fxloom.backends")
