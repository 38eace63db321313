"""A web page on which a model can be tried; needs the extra `demo`."""
