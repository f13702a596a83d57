"""The command line: thin click commands, one file each."""

if __name__ == "cli":
    raise ImportError("this folder is part of a package: import invdiff.cli (with the repository root on the path)")
