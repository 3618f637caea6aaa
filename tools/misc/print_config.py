"""Prints the full config with its base configs merged.

python tools/misc/print_config.py CONFIG [--cfg-options KEY=VALUE ...]
"""

import argparse

from dcnv4_mm.cli.configs import add_cfg_options, read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="config file, or the name of one of this package")
    add_cfg_options(parser)
    args = parser.parse_args()
    print(read_config(args.config, args.cfg_options).pretty_text)


if __name__ == "__main__":
    main()
