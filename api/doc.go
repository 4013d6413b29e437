// Package api is the HTTP contract: routes, bodies, and handlers over small interfaces.
//
// Any node serves it. A request passes one door, the router: it gets an id, a namespace, a time limit and the authoriser's
// consent there, before a handler sees it, so that no endpoint can forget them. Parameters are declared in structs that
// huma reads and documents; bodies are decoded by package job, strictly, because an unknown field has to name the nearest
// known one, and because a reflecting validator would be too slow for a batch of a thousand runs. /openapi.json is made
// from the same declarations, and docs/openapi.json is its committed copy.
//
// Every refusal is a problem document (RFC 9457) made from a *job.Error by one function. It carries the code, the finer
// reason and the field, and never a cause: causes go to the log under the request's id.
//
// Writing follows the order of L7: the store, then Raft, then the answer; a definition whose schedule did not reach Raft
// is answered 202 with "effective": false. A birth is answered as soon as its store has it (S3); the leader hears of it
// by a hint that may be lost.
//
// To add an endpoint: declare its parameters as a struct, write its handler as a method of *API, register both in
// routes.go, run the tests with -update, and add a method to package client.
package api
