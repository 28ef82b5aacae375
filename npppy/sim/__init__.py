"""npppysim: subscribers, on the same PPP engine as the concentrator.

A subscriber (:mod:`.subscriber`) speaks PPP over a carrier (:mod:`.pppoe`, :mod:`.l2tp`, :mod:`.pptp`), which has its
sockets by :mod:`.access`; what it does once it is up is its traffic (:mod:`.traffic`, :mod:`.stream`, :mod:`.tun`);
when subscribers come and go is the load (:mod:`.load`).
"""
