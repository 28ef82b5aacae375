/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Frames of a session copied to the ring buffer, as they are on the wire of the access network.
 */
#ifndef PIPEX_MIRROR_H
#define PIPEX_MIRROR_H

#include "session.h"

/* Records have one of two sizes, since the verifier must know it. */
#define RECORD_SMALL 256
#define RECORD_LARGE 2048

/* Copy the frame into a record of that many octets, which may have room for its beginning only. */
#define COPY_FRAME(record_size)                                                                                      \
	do {                                                                                                         \
		struct pipex_event *e = bpf_ringbuf_reserve(&events, record_size, 0);                                \
		__u32 room = record_size - sizeof(*e);                                                               \
                                                                                                                     \
		if (!e) {                                                                                            \
			count(PIPEX_C_MIRROR_LOST, length);                                                          \
			return 0;                                                                                    \
		}                                                                                                    \
		*e = (struct pipex_event){ PIPEX_E_MIRROR, ppp_id, generation, way, length, bpf_ktime_get_ns() };    \
		if (length < room)                                                                                   \
			room = length;                                                                               \
		/* Only so does the verifier of Linux 6.1 know that it is not 0. */                                  \
		room = ((room - 1) & (RECORD_LARGE - 1)) + 1;                                                        \
		if (room > record_size - sizeof(*e) || bpf_xdp_load_bytes(ctx, 0, e + 1, room))                      \
			bpf_ringbuf_discard(e, 0);                                                                   \
		else                                                                                                 \
			bpf_ringbuf_submit(e, 0);                                                                    \
	} while (0)

/* Of its own for the verifier: it looks at it once. */
__attribute__((noinline)) int copy_frame(struct xdp_md *ctx, __u32 ppp_id, __u32 generation, __u32 way)
{
	struct cursor c;
	__u32 length;

	if (!ctx)
		return 0;
	c = cursor_open(ctx);
	length = left(&c);
	if (length <= RECORD_SMALL - sizeof(struct pipex_event))
		COPY_FRAME(RECORD_SMALL);
	else
		COPY_FRAME(RECORD_LARGE);
	return 0;
}

INLINE void mirror(struct xdp_md *ctx, const struct flow *f, __u32 way)
{
	if (f->blocks & PIPEX_MIRROR)
		copy_frame(ctx, f->session->ppp_id, f->generation, way);
}

#endif
