"""Bad input of every kind, made from a seed, for everything that reads files: `python -m hostile` reads all of it.

A case is a *kind* of damage at a *place*, a file of something valid. Each is read in a process of its own, which must
end in one sentence or in what the file holds, with little memory, without running anything that the file brings and
without writing anywhere else. `tests/README.md` has the command and what came out.
"""
