// Package redis keeps the queue, and the status of what runs, in Redis. No correctness rests on it: all of it is derived
// from the store, and may be flushed, lost in part or put back from an old copy at any moment.
//
// Any Redis from 6.2 on will do, and what speaks its protocol and knows Lua. One may be shared: all keys begin with
// {muster:<cluster id>}, which is their hash tag (Q5), and no other key is read or written. (A Scratch, for benchmarks,
// wants a database without keys, and empties it.) It should not evict keys that have no time to live (maxmemory-policy
// noeviction or volatile-*): that is survived, but means to fill the queue again.
//
//	{muster:ID}:queue     hash: epoch, the highest raised; token, which names the state after the last write
//	{muster:ID}:runs      hash: run id -> "PRIORITY READY-AT LANE"
//	{muster:ID}:lanes     set of the lanes that are not empty
//	{muster:ID}:r:LANE    sorted set of run ids: what was ready when somebody last looked, by Order
//	{muster:ID}:d:LANE    sorted set of run ids: what was not, by ready time
//	{muster:ID}:s:RUN-ID  string with a time to live: the run as the leader last knew it (Status)
//
// A user of its own needs no more than this, which also keeps it to its keys:
//
//	ACL SETUSER muster on >PASSWORD resetkeys ~{muster:*}:* resetchannels -@all +@connection +eval +evalsha
//	  +hget +hset +hdel +hlen +hmget +zadd +zrem +zcard +zrange +zrangebyscore +zpopmin +zpopmax
//	  +sadd +srem +spop +scard +smembers +exists +type +unlink +get +set
//
// Run ids are 16 bytes, so equal scores go by id, as everywhere. Times are microseconds; sorted sets keep them exactly up
// to the year 2255. A script checks before its first write, and its first write, the token, is the one that Redis may refuse
// for want of memory; so it is carried out whole or not at all, but where somebody put keys of other types in its way: then
// the token has gone on and the queue is lost.
package redis
