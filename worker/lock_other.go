//go:build !unix

package worker

import "github.com/musterhq/muster/job"

// lockDataDir refuses: without a lock that ends with its process, two workers could share one identity (L4).
func lockDataDir(string) (func(), error) {
	return nil, job.Errorf(job.Invalid, "unsupported", "workers need a Unix system: this one cannot lock a directory")
}
