/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From a session frame to an IP packet behind an Ethernet header, and back.
 */
#ifndef PIPEX_ENCAP_H
#define PIPEX_ENCAP_H

#include "session.h"

/* Remove all before the IP packet, but for the room of an Ethernet header; before: the octets there. */
INLINE bool decapsulate(struct xdp_md *ctx, __u32 before)
{
	return !bpf_xdp_adjust_head(ctx, before - ETH_HLEN);
}

/*
 * Put the session's headers, PPP's Protocol field the last of them, in front of the packet, which loses its Ethernet
 * header.
 */
INLINE bool encapsulate(struct xdp_md *ctx, const struct pipex_session *s, const struct packet *p)
{
	__u32 length = s->encap_len, at = s->length_at;
	__be16 protocol = p->version == 4 ? bpf_htons(PPP_IP) : bpf_htons(PPP_IPV6);
	__be16 size = bpf_htons(sizeof(protocol) + p->size);
	struct cursor c;
	void *data, *end;

	if (length < ETH_HLEN || length > PIPEX_ENCAP_MAX || at > length - sizeof(size))
		return false;
	/* The verifier of Linux 6.1 does not see it in the length. */
	barrier_var(at);
	if (at > PIPEX_ENCAP_MAX)
		return false;
	if (bpf_xdp_adjust_head(ctx, ETH_HLEN - (int)(length + sizeof(protocol))))
		return false;
	c = cursor_open(ctx);
	if (left(&c) < ETH_ZLEN)
		resize(ctx, ETH_ZLEN);
	if (bpf_xdp_store_bytes(ctx, 0, (void *)s->encap, length))
		return false;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + length + sizeof(protocol) > end || data + at + sizeof(size) > end)
		return false;
	*(__be16 *)(data + length) = protocol;
	*(__be16 *)(data + at) = size;
	return true;
}

#endif
