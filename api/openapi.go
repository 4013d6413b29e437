package api

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/musterhq/muster/job"
)

// route is what one endpoint declares for people.
type route struct {
	endpoint
	tag, summary, notes string
	body                any      // a value of the body's type; nil: none
	bodyTypes           []string // media types of the body; nil: JSON
	optionalBody        bool
	answers             []answer // what success looks like; the first is the usual one
	hidden              bool     // not in the document
}

// answer is one way in which an operation succeeds.
type answer struct {
	status int
	when   string
	body   any    // a value of the body's type; nil: none
	media  string // "": JSON
}

// reply is what huma sees of an answer: nothing. Handlers write their own, through request.
type reply struct{ Body func(huma.Context) }

var answered = &reply{Body: func(huma.Context) {}}

func newHuma(a *API, rt *router) huma.API {
	schemas := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	for t, alias := range map[reflect.Type]reflect.Type{
		reflect.TypeFor[job.Instant]():     reflect.TypeFor[instantSchema](),
		reflect.TypeFor[job.Duration]():    reflect.TypeFor[durationSchema](),
		reflect.TypeFor[job.RunID]():       reflect.TypeFor[idSchema](),
		reflect.TypeFor[job.JobID]():       reflect.TypeFor[idSchema](),
		reflect.TypeFor[job.State]():       reflect.TypeFor[stateSchema](),
		reflect.TypeFor[job.Home]():        reflect.TypeFor[homeSchema](),
		reflect.TypeFor[job.Trigger]():     reflect.TypeFor[triggerSchema](),
		reflect.TypeFor[job.Disposition](): reflect.TypeFor[dispositionSchema](),
		reflect.TypeFor[job.CatchUp]():     reflect.TypeFor[catchUpSchema](),
		reflect.TypeFor[job.Edge]():        reflect.TypeFor[edgeSchema](),
		reflect.TypeFor[job.Role]():        reflect.TypeFor[roleSchema](),
	} {
		schemas.RegisterTypeAlias(t, alias)
	}
	version := a.Version
	if version == "" {
		version = "dev"
	}
	return humago.New(rt, huma.Config{OpenAPI: &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "Muster", Version: version,
			Description: "A distributed job scheduler. Any node answers. Times are RFC 3339 in UTC; refusals are problem documents (RFC 9457) " +
				"whose `code` says what a caller can do; lists take `limit` and `cursor` and answer `next_cursor` while there is more.",
			License: &huma.License{Name: "Apache-2.0"},
		},
		Components: &huma.Components{
			Schemas: schemas,
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"token": {Type: "http", Scheme: "bearer", Description: "an API key, as `muster credential create` makes them; `muster dev` needs none"},
				"node":  {Type: "mutualTLS", Description: "a node's certificate"},
			},
		},
	}, Formats: map[string]huma.Format{jsonType: {}}, DefaultFormat: jsonType})
}

// serve registers one endpoint: its parameters In, its handler, its description.
func serve[In any](a *API, rt route, h func(rq *request, in *In) error) {
	op := &rt.endpoint
	hop, body := a.describe(&rt)
	a.router.endpoints[op.method+" "+op.path] = op
	huma.Register(a.huma, hop, func(ctx context.Context, in *In) (*reply, error) {
		rq := ctx.Value(requestKey{}).(*request)
		if err := h(rq, in); err != nil {
			a.router.fail(rq, err)
		}
		return answered, nil
	})
	if body != nil { // only now: huma reads the body of an operation that it knows to have one
		item := a.huma.OpenAPI().Paths[op.path]
		for _, documented := range []*huma.Operation{item.Post, item.Put} {
			if documented != nil && documented.OperationID == op.ID {
				documented.RequestBody = body
			}
		}
	}
	for _, p := range parametersOf(reflect.TypeFor[In]()) {
		name, _, _ := strings.Cut(p.Tag.Get("query"), ",")
		op.params = append(op.params, name)
		if p.Type.Kind() == reflect.Slice {
			op.repeated = append(op.repeated, name)
		}
		op.namespaced = op.namespaced || name == "namespace"
	}
}

// parametersOf lists the fields that are query parameters.
func parametersOf(t reflect.Type) []reflect.StructField {
	var fields []reflect.StructField
	for _, f := range reflect.VisibleFields(t) {
		if !f.Anonymous && f.Tag.Get("query") != "" {
			fields = append(fields, f)
		}
	}
	return fields
}

// describe makes the operation's part of the document, and that of its body, if it has one.
func (a *API) describe(rt *route) (op huma.Operation, body *huma.RequestBody) {
	schemas := a.huma.OpenAPI().Components.Schemas
	op = huma.Operation{
		OperationID: rt.ID, Method: rt.method, Path: rt.path, Summary: rt.summary, Description: rt.notes, Hidden: rt.hidden,
		Tags: []string{rt.tag}, Responses: map[string]*huma.Response{}, DefaultStatus: rt.answers[0].status,
		SkipValidateParams: true, SkipValidateBody: true,
	}
	switch rt.Verb {
	case Public:
	case Peer:
		op.Security = []map[string][]string{{"node": {}}}
	default:
		op.Security = []map[string][]string{{"token": {}}}
	}
	if rt.body != nil {
		if rt.bodyTypes == nil {
			rt.bodyTypes = []string{jsonType}
		}
		body = &huma.RequestBody{Required: !rt.optionalBody, Content: map[string]*huma.MediaType{}}
		for _, t := range rt.bodyTypes {
			body.Content[t] = &huma.MediaType{Schema: schemas.Schema(reflect.TypeOf(rt.body), true, rt.ID+"Body")}
		}
	}
	for _, an := range rt.answers {
		r := &huma.Response{Description: an.when}
		if r.Description == "" {
			r.Description = http.StatusText(an.status)
		}
		if an.body != nil {
			if an.media == "" {
				an.media = jsonType
			}
			r.Content = map[string]*huma.MediaType{an.media: {Schema: schemas.Schema(reflect.TypeOf(an.body), true, rt.ID+"Answer")}}
		}
		if old := op.Responses[strconv.Itoa(an.status)]; old != nil { // the same status in another media type
			for t, m := range r.Content {
				old.Content[t] = m
			}
			continue
		}
		op.Responses[strconv.Itoa(an.status)] = r
	}
	op.Responses["default"] = &huma.Response{
		Description: "a refusal",
		Content:     map[string]*huma.MediaType{problemType: {Schema: schemas.Schema(reflect.TypeFor[Problem](), true, "")}},
	}
	return op, body
}

// finishOpenAPI writes the document, once all routes are there.
func (a *API) finishOpenAPI() error {
	doc := a.huma.OpenAPI()
	// huma describes its own error type along with each operation; nothing here ever answers it.
	for _, name := range []string{"ErrorModel", "ErrorDetail"} {
		delete(doc.Components.Schemas.Map(), name)
	}
	schemas := doc.Components.Schemas.Map()
	schemas["Submission"].Properties["spec"] = &huma.Schema{Ref: "#/components/schemas/Document", Description: schemas["Submission"].Properties["spec"].Description}
	// Requests are read strictly, so their schemas are closed. Answers grow: a reader that refuses a field it does not know
	// would break with the next version.
	for name, s := range schemas {
		if !slices.Contains(requestSchemas, name) && s.AdditionalProperties == false {
			s.AdditionalProperties = nil
		}
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	a.openAPI = append(b, '\n')
	return nil
}

var requestSchemas = []string{"Submission", "Batch", "BackfillRequest", "MaintenanceRequest", "RetryRequest", "JoinRequest", "TransferRequest", "CredentialRequest",
	"Document", "Schedule", "Task", "Exec", "HTTP", "Handler", "RunJob", "Retry", "Concurrency"}

// The schemas of types that write themselves as text.
type (
	instantSchema     struct{}
	durationSchema    struct{}
	idSchema          struct{}
	stateSchema       struct{}
	homeSchema        struct{}
	triggerSchema     struct{}
	dispositionSchema struct{}
	catchUpSchema     struct{}
	edgeSchema        struct{}
	roleSchema        struct{}
)

func (instantSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Nullable: true}
}

func (durationSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: `a number with a unit, such as "90s", "10m" or "1h30m"`, Examples: []any{"10m"}}
}

func (idSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "uuid"}
}

func (stateSchema) Schema(huma.Registry) *huma.Schema {
	return wordsSchema(func(i uint8) string { return job.State(i).String() })
}

func (homeSchema) Schema(huma.Registry) *huma.Schema {
	return wordsSchema(func(i uint8) string { return job.Home(i).String() })
}

func (triggerSchema) Schema(huma.Registry) *huma.Schema {
	return wordsSchema(func(i uint8) string { return job.Trigger(i).String() })
}

func (dispositionSchema) Schema(huma.Registry) *huma.Schema {
	return wordsSchema(func(i uint8) string { return job.Disposition(i).String() })
}

func (catchUpSchema) Schema(huma.Registry) *huma.Schema {
	policy := &huma.Schema{Type: huma.TypeString, Enum: []any{string(job.CatchUpNone), string(job.CatchUpLatest), string(job.CatchUpAll)}}
	return &huma.Schema{OneOf: []*huma.Schema{policy, {
		Type:                 huma.TypeObject,
		Properties:           map[string]*huma.Schema{"policy": policy, "max": {Type: huma.TypeInteger}},
		AdditionalProperties: false,
	}}}
}

func (edgeSchema) Schema(huma.Registry) *huma.Schema {
	on := []any{string(job.OnSuccess), string(job.OnFailure), string(job.OnDone)}
	return &huma.Schema{OneOf: []*huma.Schema{{Type: huma.TypeString, Description: "the name of a job"}, {
		Type:                 huma.TypeObject,
		Properties:           map[string]*huma.Schema{"job": {Type: huma.TypeString}, "on": {Type: huma.TypeString, Enum: on}},
		Required:             []string{"job"},
		AdditionalProperties: false,
	}}}
}

func (roleSchema) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	for _, r := range job.Roles {
		s.Enum = append(s.Enum, string(r))
	}
	return s
}

// wordsSchema lists the words of a closed list; a number beyond it has no word.
func wordsSchema(word func(uint8) string) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	for i := uint8(1); !strings.HasPrefix(word(i), "unknown_"); i++ {
		s.Enum = append(s.Enum, word(i))
	}
	return s
}
