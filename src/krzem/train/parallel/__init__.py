"""How one step is cut over ranks: process groups, collectives, sharding, pipeline stages."""
