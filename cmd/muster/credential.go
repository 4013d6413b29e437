package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/musterhq/muster/client"
	"github.com/musterhq/muster/job"
)

const credentialCreateHelp = `Make a credential and print its token, which is shown this once and kept nowhere:

    muster credential create ci --role submitter --namespaces billing > ci.token
    muster run submit --token-file ci.token -- /usr/local/bin/report

The roles, each with what it may do:

    admin       everything
    operator    read; operate workers and the cluster
    developer   read; define jobs, start and cancel runs; look at workers
    submitter   read; start and cancel runs
    viewer      read; look at workers and the cluster
    join        let workers join: a join token`

func (c *cli) credentialCommand() *cobra.Command {
	group := &cobra.Command{Use: "credential COMMAND", Short: "Create, list and revoke credentials for the API"}
	group.AddCommand(c.credentialCreateCommand(), c.credentialListCommand(), c.credentialRevokeCommand())
	return group
}

func (c *cli) credentialCreateCommand() *cobra.Command {
	var q client.CredentialRequest
	var role, expires string
	cmd := &cobra.Command{
		Use: "create NAME --role ROLE [flags]", Short: "Make a credential, and show its token once", Long: credentialCreateHelp, Args: takes("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Name, q.Role = args[0], job.Role(role)
			if err := job.CheckName("NAME", q.Name); err != nil {
				return err
			}
			if !q.Role.Valid() {
				if role == "" {
					return usageErrorf("--role is missing; use %s", listOr(roleWords()))
				}
				return usageErrorf("--role: %q is not a role; use %s", clip(role, 64), listOr(roleWords()))
			}
			if expires != "" {
				d, ok := parseSpan(expires)
				if !ok || d == 0 {
					return usageErrorf("--expires-in: %q is not a span; write one such as 12h or 90d", clip(expires, 64))
				}
				q.ExpiresIn = d
			}
			for _, ns := range q.Namespaces {
				if err := job.CheckName("--namespaces", ns); err != nil {
					return err
				}
			}
			return c.credentialCreate(cmd.Context(), q)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&role, "role", "", "`ROLE`: what it may do, see above")
	fs.StringSliceVar(&q.Namespaces, "namespaces", nil, "`A,B`: all that it is good for (default: every namespace)")
	fs.StringVar(&expires, "expires-in", "", "`SPAN` that it is good for, such as 90d (default: until it is revoked)")
	ofOneCall(fs, "role", "namespaces", "expires-in")
	if err := cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roleWords(), cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is there
	}
	return cmd
}

func roleWords() []string {
	words := make([]string, len(job.Roles))
	for i, r := range job.Roles {
		words[i] = string(r)
	}
	return words
}

func (c *cli) credentialCreate(ctx context.Context, q client.CredentialRequest) error {
	ctx, k, err := c.client(ctx)
	if err != nil {
		return err
	}
	n, err := k.CreateCredential(ctx, q)
	if err != nil {
		return err
	}
	return c.print(answer{
		value: n,
		names: func() []string { return []string{n.ID} },
		table: func(b *strings.Builder, _ bool) { b.WriteString(clean(n.Token) + "\n") }, // alone, so that it can go into a file
		note: fmt.Sprintf("credential %s: %s in %s, %s; this is the only time that its token is shown",
			n.Name, n.Role, namespaceWords(n.Namespaces), c.expiryWords(n.ExpiresAt)),
	})
}

func namespaceWords(ns []string) string {
	if len(ns) == 0 {
		return "every namespace"
	}
	return strings.Join(ns, ",")
}

func (c *cli) expiryWords(at job.Instant) string {
	switch {
	case at == 0:
		return "until it is revoked"
	case at.Time().Before(c.now()):
		return "expired " + c.relative(at)
	}
	return "until " + at.Time().In(c.zone).Format(time.DateOnly+" 15:04 MST")
}

func (c *cli) credentialListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List credentials", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			all, _, err := collect(k.Credentials(ctx), 0)
			if err != nil {
				return err
			}
			return c.print(answer{
				value: listOf(all),
				names: func() (names []string) {
					for _, x := range all {
						names = append(names, x.Name)
					}
					return names
				},
				table: func(b *strings.Builder, color bool) {
					t := newTable("NAME", "ROLE", "NAMESPACES", "GOOD", "CREATED", "ID")
					for _, x := range all {
						good := cell{text: c.expiryWords(x.ExpiresAt)}
						if strings.HasPrefix(good.text, "expired") {
							good.color = "31"
						}
						t.add(x.Name, string(x.Role), namespaceWords(x.Namespaces), good, c.relative(x.CreatedAt), x.ID)
					}
					t.write(b, color)
				},
				note: when(len(all) == 0, "there are no credentials"),
			})
		},
	}
}

func (c *cli) credentialRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME...", Short: "Revoke credentials, by name or id", Args: takes("NAME..."), ValidArgsFunction: c.completeCredentials,
		Long: "Revoke credentials, by name or id. Requests with them are refused from now on, and streams that were opened with them end.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, k, err := c.client(cmd.Context())
			if err != nil {
				return err
			}
			all, _, err := collect(k.Credentials(ctx), 0)
			if err != nil {
				return err
			}
			return changed(ctx, c, args, func(arg string) (job.Credential, error) {
				for _, x := range all {
					if x.Name == arg || x.ID == arg {
						return x, k.RevokeCredential(ctx, x.ID)
					}
				}
				return job.Credential{}, job.Errorf(job.NotFound, "no_credential", "there is no credential %q; `muster credential list` shows them", clip(arg, 64))
			}, func(x job.Credential) string { return x.Name }, func(x job.Credential) string { return "credential " + x.Name + " revoked" })
		},
	}
}
