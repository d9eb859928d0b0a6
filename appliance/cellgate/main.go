// Command cellgate puts a gate in front of an organisation's storage: see the README, or cellgate --help.
package main

import (
	"os"

	"cellgate/appliance"
)

func main() { os.Exit(appliance.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
