// SPDX-License-Identifier: Apache-2.0
// Panics: errors MODE, with GOTRACEBACK=crash
package main

import (
	"errors"
	"fmt"
	"os"
)

//go:noinline
func text(n int) int {
	if n > 0 {
		panic(fmt.Sprintf("no shelf %d", n))
	}
	return n
}

//go:noinline
func constant(n int) int {
	if n > 0 {
		panic("never to be seen")
	}
	return n
}

//go:noinline
func failed(n int) int {
	if n > 0 {
		panic(errors.New("bad luck"))
	}
	return n
}

//go:noinline
func number(n int) int {
	if n > 0 {
		panic(n)
	}
	return n
}

//go:noinline
func beyond(n int) int { return []int{1}[n] }

//go:noinline
func null(n *int) int { return *n + 1 }

func main() {
	n := len(os.Args)
	modes := map[string]func(){
		"text": func() { text(n) }, "constant": func() { constant(n) }, "failed": func() { failed(n) },
		"number": func() { number(n) }, "beyond": func() { beyond(n) }, "null": func() { null(nil) },
	}
	modes[os.Args[1]]()
}
