"""The control socket: its protocol, npppyd's side and npppyctl's."""
