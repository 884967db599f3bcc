"""What the service does on a GPU: `python -m benchmarks.gpu`.

`__main__` reads the command line, `runner` runs one section after the other, each in a process of its own (`section`),
and keeps what came of each. A section is a file with a function `measure(stage, figures)`; `sections` lists them. A
`Stage` says where and on what is measured; `Figures` is what a section found so far, written down as it finds it.
"""
