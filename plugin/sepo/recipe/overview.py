"""First screen of a run."""

COMMAND_LINE = "the command line"
