##! The names of servers where verdicts are logged: of the flows that were published of late, by uid, since a verdict mostly
##! comes when its connection is gone. In a cluster the nodes that publish flows tell the one that takes verdicts.

@load ./bus
@load ./server_names

module Tapline;

export {
	## Topic on which nodes of a cluster tell names.
	const names_topic = "tapline/names" &redef;

	## Names remembered: these at least, at most twice as many.
	const names_remembered = 20000 &redef;

	## Between nodes of a cluster: names of servers by the uid of the flow.
	global server_names: event(known: table[string] of string);

	## The name of a flow's server, "" where none is known.
	global known_name: function(uid: string): string;
}

@ifdef ( Tapline::native_take )

# The plugin remembers those of flows that it publishes where they are needed.
function remember_names(known: table[string] of string)
	{
	for ( uid, name in known )
		native_remember_name(uid, name);
	}

function known_name(uid: string): string
	{
	return native_known_name(uid);
	}

@else

# Of two tables the older one is forgotten when the newer one is full.
global recent_names: table[string] of string;
global older_names: table[string] of string;

function remember_names(known: table[string] of string)
	{
	for ( uid, name in known )
		{
		if ( |recent_names| >= names_remembered )
			{
			older_names = recent_names;
			recent_names = table();
			}
		recent_names[uid] = name;
		}
	}

function known_name(uid: string): string
	{
	if ( uid in recent_names )
		return recent_names[uid];
	return uid in older_names ? older_names[uid] : "";
	}

@endif

hook publishing(names: table[string] of string)
	{
	if ( is_serving() )
		remember_names(names);
	else
		Cluster::publish(names_topic, Tapline::server_names, names);
	}

event server_names(known: table[string] of string) &is_used
	{
	remember_names(known);
	}

event zeek_init()
	{
	if ( Cluster::is_enabled() && is_serving() )
		Cluster::subscribe(names_topic);
	}
