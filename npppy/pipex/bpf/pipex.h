/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * pipex: what the programs share among them and with npppyd.
 *
 * The layout of everything here is read and written by npppy/pipex/ebpf/layout.py, and outlives both in pinned maps:
 * a change of it is a change of PIPEX_VERSION.  Multi-octet fields are in host order unless they say "wire".
 */
#ifndef PIPEX_H
#define PIPEX_H

#include <linux/bpf.h>
#include <linux/types.h>

#define PIPEX_VERSION 4

/* What carries a session. */
enum pipex_kind {
	PIPEX_PPPOE = 1,
	PIPEX_L2TP = 2,
	PIPEX_PPTP = 3,
};

/*
 * A session on the wire.  L2TP and PPTP are found by the ids that we gave out, which are unique over the daemon; the
 * peer's address and port stand in the session and are compared.
 */
struct pipex_key {
	__u8 kind;
	__u8 zero;
	__be16 id;	/* wire: SESSION_ID, session id, call id */
	__u32 port;	/* PPPoE: interface index; L2TP: tunnel id; PPTP: 0 */
	__u16 outer;	/* PPPoE: VLAN tags, 0: none */
	__u16 inner;
	__u8 peer[6];	/* PPPoE: MAC address; else 0 */
	__u16 zero2;
};

/* Where a key or an address leads.  A slot that was reused has another generation than the entry that led to it. */
struct pipex_ref {
	__u32 slot;
	__u32 generation;
};

/* An address of a peer; IPv4 as ::ffff:a.b.c.d is not used: each family has a map of its own. */
struct pipex_host4 {
	__u32 domain;
	__be32 address;
};

struct pipex_net4 {
	__u32 prefixlen;	/* of domain and address together: 32 + length */
	__u32 domain;
	__be32 address;
};

struct pipex_net6 {
	__u32 prefixlen;	/* 32 + length */
	__u32 domain;
	__u8 address[16];
};

/* Blocks: what is done with a session's packets, a bit each in pipex_session.blocks. */
#define PIPEX_FILTER	(1u << 0)	/* drop what does not come from the peer's address or networks */
#define PIPEX_MSS	(1u << 1)	/* clamp the MSS of SYNs, both ways */
#define PIPEX_COUNT	(1u << 2)	/* packets and octets, both ways */
#define PIPEX_IDLE	(1u << 3)	/* note when a packet passed that counts as activity */
#define PIPEX_ECHO	(1u << 4)	/* answer LCP Echo-Request, note Echo-Reply; set only while LCP is open */
#define PIPEX_POLICE_UP	(1u << 5)
#define PIPEX_POLICE_DOWN (1u << 6)
#define PIPEX_MIRROR	(1u << 7)	/* copy every frame to the ring buffer, for capture */
#define PIPEX_IP4	(1u << 8)	/* payloads that may pass */
#define PIPEX_IP6	(1u << 9)
#define PIPEX_FAST	(1u << 10)	/* upstream NIC to NIC where the FIB allows it, else through the stack */
#define PIPEX_USER	(1u << 11)	/* all packets of the session go to npppyd */
#define PIPEX_IPSEC	(1u << 12)	/* only what has been decrypted is the peer's, and what leaves is to be encrypted */
#define PIPEX_MPPE	(1u << 13)	/* IP is encrypted, both ways, and none in the clear passes */

/* How encap is filled in, where that is optional: bits of pipex_session.flags. */
#define PIPEX_CHECKSUM	(1u << 0)	/* the outer UDP header has a checksum */

/* What a payload is and where it goes next; today the IP stack of the session's domain. */
enum pipex_payload {
	PIPEX_PPP = 0,
	PIPEX_IP = 1,
	PIPEX_ETHERNET = 2,
};

/* Ethernet 14, two tags 8, IPv6 40, UDP 8, L2TP 12, Address and Control 2, and some room. */
#define PIPEX_ENCAP_MAX 96

/*
 * A session.  npppyd writes it; the programs only read it: what they count up, sequence numbers and keys, belongs to
 * maps of their own, by slot.
 *
 * encap is the frame header as it leaves.  What varies from packet to packet is filled in where the offsets say, 0:
 * nowhere.  The peer's outer address and port stand there too, and a frame from another is not the peer's.  Of L2TP
 * and PPTP, where each checksum goes, the sum of what does not vary stands: of IPv4's header, and of UDP's pseudo
 * header.
 */
struct pipex_session {
	/* What a packet of data needs comes first: a cache line and, for those to the peer, the begin of the next. */
	__u32 generation;	/* 0: the slot is free */
	__u32 blocks;
	__be32 address4;	/* wire; IPv6 sources are looked up in nets6 */
	__u32 ifindex;		/* where encapsulated packets leave; 0: by the stack */
	__u16 mtu;		/* the largest IP packet to the peer, and from it */
	__u16 mru;
	__u16 shared;		/* which entry of config: the shared interface that its packets come in on */
	__u16 encap_len;
	__u16 length_at;	/* PPPoE: LENGTH; L2TP: Length; PPTP: Payload Length of GRE */
	__u16 flags;
	__u8 kind;
	__u8 payload;
	__u8 prefixlen4;	/* of the peer's network */
	__u8 zero;
	__u8 encap[PIPEX_ENCAP_MAX];	/* all before the PPP Protocol field */
	__u32 ppp_id;
	__u32 domain;
	__be32 magic;		/* wire: ours, for Echo-Reply; and the peer's */
	__be32 peer_magic;
	__u32 mark;		/* of packets that leave by the stack: which IPsec SA is the peer's */
	struct pipex_ref next;	/* the session that payload goes into, of a LAC or switch; generation 0: none */
	__u16 outer_at;		/* the outer IP header, right behind one of Ethernet: 14; 0: none */
	__u16 seq_at;		/* L2TP: Ns and Nr; PPTP: Sequence and Acknowledgment Number of GRE */
	__u32 key_port;		/* what the key has and encap has not: L2TP's ids of ours; PPPoE: 0 */
	__be16 key_id;		/* wire */
	__u16 window;		/* PPTP: data that may be on its way to the peer, in packets; 0: any */
	__u8 spare[24];
};

enum pipex_way {
	PIPEX_UP = 0,	/* from the peer */
	PIPEX_DOWN = 1,
};

/* Counters of a slot, for npppyd to map; they begin at 0 with each generation. */
struct pipex_stats {
	/* A cache line of what packets of data write. */
	__u64 in_bytes, in_packets, out_bytes, out_packets;
	__u64 active_ns;	/* CLOCK_MONOTONIC of the last packet that counts as activity */
	__u64 heard_ns;		/* of the last frame of the peer, whatever it held */
	__u64 stack_ns;		/* of the last packet of a fast session that went through the stack: see fast.h */
	__u64 echo_ns;		/* of the last Echo-Request that was answered: their rate is bounded */
	__u64 in_errors, out_errors;
	__u64 looped;		/* Echo-Requests with our own magic number */
	__u64 outer_ns;		/* as stack_ns, of the outer packets of L2TP and PPTP */
	__u64 ack_ns;		/* PPTP: of the last packet that acknowledged something new to the peer */
	__u64 window_ns;	/* PPTP: of the last that the peer acknowledged, as far as its window counts */
	__u64 fail_ns;		/* MPPE: of the last packet that went to npppyd to be decrypted */
	__u64 decrypted_ns;	/* and of the last that was decrypted here */
};

/*
 * Sequence numbers of a slot's data, of which 16 bits count with L2TP.  npppyd writes them before anything leads to
 * the session; then what it sends by itself takes its number here too: see struct pipex_frame.
 */
struct pipex_seq {
	__u32 out;	/* of the next message to the peer */
	__u32 in;	/* one more than the highest of the peer */
	/* PPTP; else 0. */
	__u32 acked;		/* one more than the last that was acknowledged to the peer */
	__u32 peer_acked;	/* one more than the highest that the peer has acknowledged */
};

/*
 * A way of a slot that encrypts (RFC 3078), stateless, at 2 * slot + way.  The key is changed before each packet, also
 * before the first.  Whoever writes back what he has worked out without the lock sees first whether generation and
 * count are as they were.
 */
struct pipex_mppe {
	struct bpf_spin_lock lock;
	__u32 generation;	/* of the session */
	__u16 count;		/* of the next packet: 12 bits */
	__u16 late, end;	/* those before end, from late on, were left out, and may yet come; equal: there are none */
	__u8 size;		/* octets of the keys: 8 or 16 */
	__u8 salt;		/* so many of which are fixed (RFC 3079 section 3.1): 128 bits 0, 56 bits 1, 40 bits 3 */
	__u8 start[16];		/* the key that all begin with: StartKey of GetNewKeyFromSHA */
	__u8 key[16];		/* of the packet before count */
	__u8 late_key[16];	/* of the packet before late */
};

/*
 * A token bucket for each way of a slot, at 2 * slot + way.  rate 0: no limit.  One written with tokens
 * and stamp_ns 0 is full.
 */
struct pipex_bucket {
	__u64 rate;	/* octets a second */
	__u64 burst;	/* octets, no less than a packet has, no more than 18e9 */
	__u64 tokens;	/* octets, times 10^9 */
	__u64 stamp_ns;
	struct bpf_spin_lock lock;
	__u32 zero;
};

/* Drops and punts by reason, and packets by path, per processor. */
enum pipex_counter {
	PIPEX_C_STACK_UP, PIPEX_C_STACK_DOWN, PIPEX_C_FAST_UP, PIPEX_C_FAST_DOWN,
	PIPEX_C_USER_UP, PIPEX_C_USER_DOWN,
	PIPEX_C_ECHO,
	PIPEX_C_DROP_FILTER, PIPEX_C_DROP_POLICE, PIPEX_C_DROP_MALFORMED, PIPEX_C_DROP_PROTOCOL,
	PIPEX_C_PUNT_CONTROL, PIPEX_C_PUNT_UNKNOWN, PIPEX_C_PUNT_TOOBIG, PIPEX_C_PUNT_STALE,
	PIPEX_C_TX_FAIL,	/* an interface that devs does not have */
	PIPEX_C_MIRROR_LOST,	/* no room in the ring buffer */
	PIPEX_C_DROP_LATE,	/* by its sequence number, or coherency count */
	PIPEX_C_DROP_CLEAR,	/* not encrypted */
	PIPEX_C_DROP_WINDOW,	/* the peer has too much to acknowledge */
	PIPEX_C_ACK_UP, PIPEX_C_ACK_DOWN,	/* acknowledgments without data */
	PIPEX_C_MAX = 32,
};

struct pipex_count {
	__u64 packets, bytes;
};

/* Of a shared interface; the entries that are not used are 0. */
#define PIPEX_SHARED_MAX 16
struct pipex_config {
	__u32 version;
	__u32 npx0, npx1, tun;		/* interface indexes */
	__u8 npx0_mac[6];
	__u8 npx1_mac[6];
	__u32 echo_interval_ns;		/* least time between two Echo-Replies of a session */
	__u8 spare[28];
};

/* A NIC, by interface index. */
struct pipex_nic {
	__u8 mac[6];		/* of a core NIC, its own: pipex_nic takes no other frames; else 0 */
	__u16 flags;		/* npppyd's own notes */
};

/*
 * The head of an Ethernet frame of this type, sent on npx0: what follows, length octets from PPP's Protocol field on,
 * is encapsulated and leaves as data does.  length 0: an acknowledgment without data, of PPTP.
 */
#define PIPEX_FRAME_TYPE 0x88B5
struct pipex_frame {
	struct pipex_ref ref;
	__be16 length;	/* wire; padding may follow */
	__u16 again;	/* npx0 is to send it once more, by the queue of its session */
};

/* The head of a record in the ring buffer. */
enum pipex_event_kind { PIPEX_E_MIRROR = 1 };
struct pipex_event {
	__u32 kind;
	__u32 ppp_id;
	__u32 generation;
	__u16 way;	/* enum pipex_way */
	__u16 length;	/* of the frame, of which as much follows as there is room for */
	__u64 ns;
};

#endif
