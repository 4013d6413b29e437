package worker

import (
	"errors"
	"os"
	"os/user"
	"strconv"
	"sync"
	"time"
)

// account is a user that commands run as.
type account struct {
	name   string
	home   string
	uid    uint32
	gid    uint32
	groups []uint32 // supplementary
	own    bool     // it is the worker's own: nothing needs to be switched
	until  time.Time
}

// accountKept is for how long a looked-up account is believed; a lookup may ask a directory server.
const accountKept = 30 * time.Second

// users looks accounts up and remembers them.
type users struct {
	mu    sync.Mutex
	known map[string]*account // "" is the worker's own
}

// isOwn tells whether name is the user that the worker runs as.
func (u *users) isOwn(name string) bool {
	own, no := u.resolve("")
	return no == nil && own.name == name
}

// resolve finds an account; "" is the worker's own. Another one than that can only be had by root.
func (u *users) resolve(name string) (*account, *refusal) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if a := u.known[name]; a != nil && time.Now().Before(a.until) {
		return a, nil
	}
	if u.known == nil || len(u.known) > 1000 {
		u.known = map[string]*account{}
	}
	a, no := lookUp(name)
	if no == nil {
		a.until = time.Now().Add(accountKept)
		u.known[name] = a
	}
	return a, no
}

func lookUp(name string) (*account, *refusal) {
	var (
		found *user.User
		err   error
	)
	if name == "" {
		// A container may run the worker under a uid without a name; that is no reason not to work.
		if found, err = user.LookupId(strconv.Itoa(os.Getuid())); err != nil {
			return &account{uid: uint32(os.Getuid()), gid: uint32(os.Getgid()), home: "/", own: true}, nil
		}
	} else if found, err = user.Lookup(name); err != nil {
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			return nil, cannotStart("there is no user %.64q on this worker", name)
		}
		return nil, cannotStart("the user %.64q cannot be looked up: %v", name, err)
	}
	uid, err1 := strconv.ParseUint(found.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(found.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, cannotStart("users cannot be switched on this system")
	}
	a := &account{name: found.Username, home: found.HomeDir, uid: uint32(uid), gid: uint32(gid), own: int(uid) == os.Geteuid()}
	if a.own {
		return a, nil
	}
	if os.Geteuid() != 0 {
		return nil, cannotStart("the command cannot run as user %.64q: only a worker that runs as root can switch users", name)
	}
	ids, err := found.GroupIds()
	if err != nil {
		return nil, cannotStart("the groups of user %.64q cannot be looked up: %v", name, err)
	}
	for _, id := range ids {
		g, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, cannotStart("user %.64q is in a group without a number", name)
		}
		a.groups = append(a.groups, uint32(g))
	}
	return a, nil
}
