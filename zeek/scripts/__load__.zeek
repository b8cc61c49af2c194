##! The package as a sensor runs it: features onto the bus, verdicts back from it.

@load ./core
@load ./bus
@load ./known_names
@load ./stats
@load ./verdicts
@load ./verdict_lines
@load ./trace_verdicts
@load ./notices
