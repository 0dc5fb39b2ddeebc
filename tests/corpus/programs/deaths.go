// SPDX-License-Identifier: Apache-2.0
// Ways of Go to die: deaths nil|panic|fatal. As if GOTRACEBACK=crash were set.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"sync"
)

var sink int

type shelf struct{ items []int }

//go:noinline
func (s *shelf) last(n int) int { return s.items[n] + sink }

//go:noinline
func middle(depth int, leaf func(int) int) int {
	if depth > 1 {
		return middle(depth-1, leaf) + sink
	}
	return leaf(depth) + sink
}

//go:noinline
func dereference(n int) int {
	var where *shelf
	return where.last(n) + sink
}

func main() {
	debug.SetTraceback("crash")
	var waiting sync.WaitGroup
	for index := 0; index < 4; index++ {
		waiting.Add(1)
		go func() { waiting.Done(); select {} }()
	}
	waiting.Wait()
	switch os.Args[1] {
	case "nil":
		fmt.Println(`{"functions": ["main.(*shelf).last", "main.dereference", "main.middle", "main.middle", "main.main"]}`)
		sink = middle(2, dereference)
	case "panic":
		fmt.Println(`{"functions": ["main.middle", "main.middle", "main.main"]}`)
		sink = middle(2, func(n int) int { panic(fmt.Sprint("out of ", n)) })
	case "bounds":
		fmt.Println(`{"functions": ["main.(*shelf).last", "main.middle", "main.middle", "main.main"]}`)
		sink = middle(2, func(n int) int { return (&shelf{[]int{1}}).last(n + 5) })
	}
}
