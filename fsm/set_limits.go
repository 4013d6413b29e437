package fsm

// SetLimits sets the bounds of the embedded store. They lie in the state, since replicas that differ in a bound would
// differ in what they accept.
type SetLimits struct {
	Limits Limits `cbor:"1,keyasint"`
}

// Kind implements Command.
func (*SetLimits) Kind() Kind { return KindSetLimits }

// Size implements Command.
func (*SetLimits) Size() int { return 48 }

func (c *SetLimits) apply(t *tx, _ Meta) Result {
	t.g.Limits = c.Limits
	return Result{}
}
