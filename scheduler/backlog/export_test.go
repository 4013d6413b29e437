package backlog

// Sizes makes a loader's reads small, so that few runs are many.
func (l *Loader) Sizes(load, least, aside int) { l.sizes = sizes{load, least, aside} }
