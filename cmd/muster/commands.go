package main

import "github.com/spf13/cobra"

func (c *cli) processCommands() []*cobra.Command { return []*cobra.Command{c.devCommand()} }

func (c *cli) workCommands() []*cobra.Command {
	return []*cobra.Command{c.validateCommand(), c.importCommand()}
}
