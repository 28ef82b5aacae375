"""PPP over Ethernet: RFC 2516, RFC 4638 and the access line tags of TR-101."""
