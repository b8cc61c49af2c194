"""Where flows come from: capture files (built in, or through Zeek). Live sources are beside it in `service`."""
