"""Models with layers of Brevitas: each layer becomes one of ours that computes the same.

    model, examples -> a copy -> recorded: what every quantizer did -> replaced: modules of ours

Brevitas itself is never imported: its objects are recognised by the module names of their classes.
"""
