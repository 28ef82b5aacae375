/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The order of a session's frames where they have numbers, which pipex_core gives.  What npx0 sends by one of its queues
 * is treated by one processor at a time, on its way to the NIC: so all of such a session has to take one queue,
 * whichever processors send it.
 *
 * What goes from NIC to NIC, without npx0, has its order by the queues of the NIC that it comes in by: by one for each
 * session, or it has none.
 */
#ifndef PIPEX_ORDER_H
#define PIPEX_ORDER_H

#include "session.h"

/* The odd number nearest to 2^32 over the golden ratio: multiples of it lie as far apart as can be. */
#define SCATTER 0x9e3779b1u

/* The session of a frame that npx0 sends; generation 0: there is none. */
INLINE struct pipex_ref sent_to(struct __sk_buff *skb)
{
	struct pipex_ref none = {}, *ref = NULL;
	struct pipex_frame frame;
	struct in6_addr address6;
	__be32 address4;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct iphdr, daddr), &address4, sizeof(address4)))
			ref = route4(address4);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, daddr), &address6, sizeof(address6)))
			ref = route6(&address6);
	} else if (skb->protocol == bpf_htons(PIPEX_FRAME_TYPE)) {
		if (!bpf_skb_load_bytes(skb, ETH_HLEN, &frame, sizeof(frame)))
			return frame.ref;
	}
	return ref ? *ref : none;
}

/* Choose the queue: the session's, or the processor's own, as far as there are so many. */
INLINE void choose_queue(struct __sk_buff *skb)
{
	struct pipex_ref ref = sent_to(skb);
	struct pipex_session *s = ref.generation ? bpf_map_lookup_elem(&slots, &ref.slot) : NULL;

	if (s && ((has_outer(s) && s->seq_at) || s->blocks & PIPEX_MPPE)) {
		/* Else it would count, and not the hash. */
		skb->queue_mapping = 0;
		bpf_set_hash(skb, ref.slot * SCATTER);
	} else {
		/* 0 means that there is none. */
		skb->queue_mapping = bpf_get_smp_processor_id() + 1;
	}
}

#endif
