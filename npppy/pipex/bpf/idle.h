/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * When the peer was last heard, and when a packet last passed that counts as activity.  The clock ticks some hundred
 * times a second, which is enough for both and spares most packets a write.
 */
#ifndef PIPEX_IDLE_H
#define PIPEX_IDLE_H

#include "session.h"

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO_REQUEST 8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129

/* What hosts send by themselves: domain, BOOTP, NTP, NetBIOS names, RIP. */
INLINE bool idle_port(__be16 port)
{
	switch (bpf_ntohs(port)) {
	case 53:
	case 67:
	case 68:
	case 123:
	case 137:
	case 520:
		return true;
	}
	return false;
}

/* npppd's list of packets that do not count; for IPv6 the same. */
INLINE bool idle_packet(const struct packet *p)
{
	__be16 *ports;
	__u8 *icmp;

	/* A fragment: somebody has much to send. */
	if (p->fragment)
		return false;
	switch (p->protocol) {
	case PROTO_TCP:
	case PROTO_UDP:
		ports = carried(p, 8);
		return !ports || idle_port(ports[0]) || idle_port(ports[1]);
	case PROTO_ICMP:
		if (p->version != 4)
			return false;
		icmp = carried(p, 8);
		return !icmp || (*icmp != ICMP_ECHO_REQUEST && *icmp != ICMP_ECHO_REPLY);
	case PROTO_ICMPV6:
		if (p->version != 6)
			return false;
		icmp = carried(p, 8);
		return !icmp || (*icmp != ICMPV6_ECHO_REQUEST && *icmp != ICMPV6_ECHO_REPLY);
	case PROTO_IGMP:
		return p->version == 4;
	}
	return false;
}

INLINE void idle(const struct flow *f, const struct packet *p, __u64 now)
{
	if (f->blocks & PIPEX_IDLE && f->stats->active_ns != now && !idle_packet(p))
		f->stats->active_ns = now;
}

INLINE void heard(const struct flow *f, __u64 now)
{
	if (f->stats->heard_ns != now)
		f->stats->heard_ns = now;
}

#endif
