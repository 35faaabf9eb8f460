"""A laptop playing a whole fleet: data sets, worlds, the in-process Grid, the simulate command."""
