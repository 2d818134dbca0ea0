"""Run the command line as `python -m mesa_lm`."""

from mesa_lm.cli.main import main

if __name__ == "__main__":
    main()
