// Package clusterpb is what nodes of a cluster say to each other besides Raft: cluster.proto and what is generated from
// it. The calls share the Raft port with Raft itself and are for nodes only; both ends are this repository's, of versions
// that may differ by one while a cluster is upgraded.
package clusterpb
