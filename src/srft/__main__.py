"""``python -m srft``: the command, for launchers that start a module (``torchrun -m srft ...``)."""

from srft.cli import main

if __name__ == "__main__":
    main()
