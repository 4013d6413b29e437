package systemtest

import "testing"

type network struct{ t *testing.T }

func (n *network) node(i int) string        { return "" }
func (n *network) nodeSpace(i int) string   { return "" }
func (n *network) workerSpace(i int) string { return "" }
func (n *network) heal()                    {}
