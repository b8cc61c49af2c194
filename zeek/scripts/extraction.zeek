##! Extraction in script, for sensors without the plugin.

@load ./state
@load ./filters
@load ./features
@load ./heads
@load ./content
@load ./publish
@load ./record

module Tapline;

export {
	## Whether the plugin extracts and packs.
	const native = F;
}
