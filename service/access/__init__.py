"""Who may do what: keys, their scopes, sessions of browsers, limits of rate, and the account of it all."""
