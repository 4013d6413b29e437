package api

import (
	"slices"
	"strings"
)

// Route is one entry of the contract.
type Route struct {
	Operation
	Method string
	Path   string // as http.ServeMux takes it: /v1/jobs/{name}
	// Namespaced tells whether the operation is about one namespace: that of ?namespace=, or "default".
	Namespaced bool
	// Stream tells whether it lasts as long as its caller stays.
	Stream bool
}

// Operations lists all routes, so that whoever decides on them can prove that none was forgotten. Paths that only a console
// knows are apart: they are Public, and so is what is not there.
func Operations() []Route {
	a := new(API)
	if err := a.buildRoutes(); err != nil {
		panic(err) // it has nothing to fail at: no registry, no parameter
	}
	return a.operations()
}

func (a *API) operations() []Route {
	var all []Route
	for _, op := range a.router.endpoints {
		all = append(all, Route{op.Operation, op.method, op.path, op.namespaced, op.stream})
	}
	slices.SortFunc(all, func(x, y Route) int { return strings.Compare(x.Path+x.Method, y.Path+y.Method) })
	return all
}
