"""Numbers of PPP: Protocol fields, packet codes, option types."""

from __future__ import annotations

# Protocol fields (RFC 1661 section 2 and the registry).
IP = 0x0021
IPV6 = 0x0057
#: What MPPE has encrypted (RFC 3078 section 3).
COMPRESSED = 0x00FD
IPCP = 0x8021
IPV6CP = 0x8057
CCP = 0x80FD
LCP = 0xC021
PAP = 0xC023
CHAP = 0xC223
EAP = 0xC227

NAMES = {
    IP: "ip",
    COMPRESSED: "mppe",
    IPCP: "ipcp",
    IPV6CP: "ipv6cp",
    CCP: "ccp",
    LCP: "lcp",
    PAP: "pap",
    CHAP: "chap",
    EAP: "eap",
}

# Codes that every control protocol has (RFC 1661 section 5).
CONFIGURE_REQUEST = 1
CONFIGURE_ACK = 2
CONFIGURE_NAK = 3
CONFIGURE_REJECT = 4
TERMINATE_REQUEST = 5
TERMINATE_ACK = 6
CODE_REJECT = 7
# Codes of LCP alone (RFC 1661 section 5; RFC 1570 section 1).
PROTOCOL_REJECT = 8
ECHO_REQUEST = 9
ECHO_REPLY = 10
DISCARD_REQUEST = 11
IDENTIFICATION = 12
TIME_REMAINING = 13
# Codes of CCP alone (RFC 1962 section 3).
RESET_REQUEST = 14
RESET_ACK = 15

# LCP options (RFC 1661 section 6, RFC 1662 section 7, RFC 1570 section 2).
OPT_MRU = 1
OPT_ACCM = 2
OPT_AUTH = 3
OPT_MAGIC = 5
OPT_PFC = 7
OPT_ACFC = 8

# The algorithms of CHAP (RFC 1994 section 3; RFC 2759 section 3).
CHAP_MD5 = 5
CHAP_MS_V2 = 0x81

# IPCP options (RFC 1332 section 3, RFC 1877 section 1).
OPT_ADDRESS = 3
OPT_DNS1 = 129
OPT_NBNS1 = 130
OPT_DNS2 = 131
OPT_NBNS2 = 132

# CCP options (RFC 3078 section 2).
OPT_MPPE = 18

#: Without an MRU option this is it (RFC 1661 section 6.1).
DEFAULT_MRU = 1500
#: The smallest MRU we take from a peer, as npppd.
MIN_MRU = 500
