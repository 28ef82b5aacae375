/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Maps, and how a packet finds its session.  The numbers of entries that depend on how many sessions there may be are
 * set as the object is loaded.
 */
#ifndef PIPEX_SESSION_H
#define PIPEX_SESSION_H

#include "parse.h"

#define ENTRIES 1024

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ENTRIES);
	__type(key, struct pipex_key);
	__type(value, struct pipex_ref);
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ENTRIES);
	__type(key, struct pipex_host4);
	__type(value, struct pipex_ref);
} hosts4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ENTRIES);
	__type(key, struct pipex_net4);
	__type(value, struct pipex_ref);
} nets4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ENTRIES);
	__type(key, struct pipex_net6);
	__type(value, struct pipex_ref);
} nets6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/* Not that anybody maps it, but only so does it begin at a cache line. */
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, struct pipex_session);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, struct pipex_stats);
} stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ENTRIES);
	__type(key, __u32);
	__type(value, struct pipex_seq);
} seqs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * ENTRIES);
	__type(key, __u32);
	__type(value, struct pipex_bucket);
} buckets SEC(".maps");

/* Not an array: only of sessions that encrypt there is anything. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 2 * ENTRIES);
	__type(key, __u32);
	__type(value, struct pipex_mppe);
} mppe SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PIPEX_C_MAX);
	__type(key, __u32);
	__type(value, struct pipex_count);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PIPEX_SHARED_MAX);
	__type(key, __u32);
	__type(value, struct pipex_config);
} config SEC(".maps");

/* Where frames may be redirected to: interface index to itself. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} devs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct pipex_nic);
} nics SEC(".maps");

/* So many octets that a capture of 8,000 long frames a second bears npppyd doing something else for 60 ms. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Today there is one routing domain. */
#define DOMAIN 0

INLINE void count(enum pipex_counter what, __u32 bytes)
{
	__u32 index = what;
	struct pipex_count *c = bpf_map_lookup_elem(&counts, &index);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}

/* A frame's session.  session and blocks are as they were when it was looked up. */
struct flow {
	__u32 slot;
	__u32 generation;
	__u32 blocks;
	struct pipex_session *session;
	struct pipex_stats *stats;
};

/*
 * The session that an entry leads to.  False: its slot has another by now, or none.
 *
 * npppyd gives a slot a new session only when no program runs any more that may have seen the old one.
 */
INLINE bool follow(const struct pipex_ref *ref, struct flow *f)
{
	f->slot = ref->slot;
	f->generation = ref->generation;
	f->session = bpf_map_lookup_elem(&slots, &f->slot);
	f->stats = bpf_map_lookup_elem(&stats, &f->slot);
	if (!f->session || !f->stats || f->session->generation != f->generation)
		return false;
	f->blocks = f->session->blocks;
	return true;
}

/* The same for what was looked up, NULL included; without a session, that is counted. */
INLINE bool find(const struct pipex_ref *ref, struct flow *f, __u32 bytes)
{
	bool found = ref && follow(ref, f);

	if (!found)
		count(ref ? PIPEX_C_PUNT_STALE : PIPEX_C_PUNT_UNKNOWN, bytes);
	return found;
}

/* Where the session of a destination is: its address, else the longest of the networks behind peers. */
INLINE struct pipex_ref *route4(__be32 destination)
{
	struct pipex_host4 host = { DOMAIN, destination };
	struct pipex_net4 net = { 64, DOMAIN, destination };
	struct pipex_ref *ref = bpf_map_lookup_elem(&hosts4, &host);

	return ref ? ref : bpf_map_lookup_elem(&nets4, &net);
}

INLINE struct pipex_ref *route6(const struct in6_addr *destination)
{
	struct pipex_net6 net = { 160, DOMAIN, {} };

	__builtin_memcpy(net.address, destination, sizeof(net.address));
	return bpf_map_lookup_elem(&nets6, &net);
}

/* Has it outer headers?  outer_at says so too, but lies where data of PPPoE has nothing else to look for. */
INLINE bool has_outer(const struct pipex_session *s)
{
	return s->kind != PIPEX_PPPOE;
}

/* Do the blocks of a session let a payload of this version of IP pass? */
INLINE bool may_pass(const struct flow *f, __u8 version)
{
	return f->blocks & (version == 4 ? PIPEX_IP4 : PIPEX_IP6);
}

#endif
