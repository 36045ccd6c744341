"""What every other room uses: checks of arguments, parameter dicts, random keys."""
