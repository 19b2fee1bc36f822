// Judges histories of the faults program with porcupine, a public checker of linearizability, so that lab/faults/checker.ts
// is not the only judge of its kind. lab/faults/export.ts writes the histories and documents their format.
//
//	go run . history.ndjson …
//
// Prints one JSON object a file: {"file", "partitions", "operations", "broken": [partition …], "undecided": [partition …]}.
// Exit code 0: every partition is linearizable. 1: one is not, or was not decided in time. 2: a file cannot be read.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// The search for an order of one partition ends after this; the short histories of tests take milliseconds.
const deadline = 2 * time.Minute

// When an operation ends that was not answered.
const never = int64(math.MaxInt64)

// The longest line: a receive of 100 messages of 64 KiB, escaped.
const maxLine = 64 << 20

type line struct {
	Partition string   `json:"partition"`
	Client    int      `json:"client"`
	Call      float64  `json:"call"`
	Return    *float64 `json:"return"`
	operation
}

// What was asked and what was answered, as the models read it.
type operation struct {
	Kind string `json:"kind"`
	// Of a write, and of a read that found one.
	Value *string `json:"value"`
	// Of a removal: whether it found the key. Absent where no answer came.
	Found *bool `json:"found"`
	// Of a send.
	Content string `json:"content"`
	// Of a receive, in their order.
	Contents []string `json:"contents"`
	// Of a send: it was acknowledged, so it has to arrive. Of a receive: its deliveries are surely recorded.
	Certain bool `json:"certain"`
	// Of a send: a receive that failed may have leased it before it arrived.
	Leased bool `json:"leased"`
	// Of the end: contents that may be missing all the same.
	Excused []string `json:"excused"`
}

type verdict struct {
	File       string   `json:"file"`
	Partitions int      `json:"partitions"`
	Operations int      `json:"operations"`
	Broken     []string `json:"broken"`
	Undecided  []string `json:"undecided"`
}

func main() {
	if len(os.Args) < 2 {
		fail("usage: go run . history.ndjson …")
	}
	status := 0
	for _, file := range os.Args[1:] {
		result := judge(file)
		text, err := json.Marshal(result)
		if err != nil {
			fail(err.Error())
		}
		fmt.Println(string(text))
		if len(result.Broken)+len(result.Undecided) > 0 {
			status = 1
		}
	}
	os.Exit(status)
}

func judge(file string) verdict {
	partitions := read(file)
	names := make([]string, 0, len(partitions))
	for name := range partitions {
		names = append(names, name)
	}
	sort.Strings(names)
	result := verdict{File: file, Partitions: len(names), Broken: []string{}, Undecided: []string{}}
	for _, name := range names {
		model := keyModel
		if strings.HasPrefix(name, "queue ") {
			model = queueModel
		}
		result.Operations += len(partitions[name])
		switch check(model, partitions[name]) {
		case porcupine.Illegal:
			result.Broken = append(result.Broken, name)
		case porcupine.Unknown:
			result.Undecided = append(result.Undecided, name)
		}
	}
	return result
}

// Whether there is an order that explains all answers. One that was not answered may as well take effect after all
// others, so an order without it will do; to search for one with all of them at once takes time that doubles with each.
// So the search begins without those whose effect nobody is known to have seen.
func check(model porcupine.Model, operations []porcupine.Operation) porcupine.CheckResult {
	seen := map[string]bool{}
	for _, one := range operations {
		if asked := one.Input.(operation); asked.Kind == "read" && asked.Value != nil {
			seen[*asked.Value] = true
		}
	}
	isNeeded := func(one porcupine.Operation) bool {
		asked := one.Input.(operation)
		return one.Return != never || asked.Kind == "send" || (asked.Kind == "write" && seen[*asked.Value])
	}
	isRemoval := func(one porcupine.Operation) bool { return one.Input.(operation).Kind == "remove" }
	isAny := func(porcupine.Operation) bool { return true }
	result := porcupine.Unknown
	for _, isKept := range []func(porcupine.Operation) bool{
		isNeeded,
		func(one porcupine.Operation) bool { return isNeeded(one) || isRemoval(one) },
		isAny,
	} {
		var kept []porcupine.Operation
		for _, one := range operations {
			if isKept(one) {
				kept = append(kept, one)
			}
		}
		// Only of all of them it shows that they are broken.
		result = porcupine.CheckOperationsTimeout(model, kept, deadline)
		if result == porcupine.Ok {
			break
		}
	}
	return result
}

func read(file string) map[string][]porcupine.Operation {
	input, err := os.Open(file)
	if err != nil {
		fail(err.Error())
	}
	defer input.Close()
	partitions := map[string][]porcupine.Operation{}
	scanner := bufio.NewScanner(input)
	scanner.Buffer(nil, maxLine)
	for number := 1; scanner.Scan(); number++ {
		var entry line
		if err := json.Unmarshal(scanner.Bytes(), &entry); err != nil {
			fail(fmt.Sprintf("%s:%d: %v", file, number, err))
		}
		if entry.Partition == "" || entry.Kind == "" {
			fail(fmt.Sprintf("%s:%d: a line needs a partition and a kind", file, number))
		}
		// One that was not answered may take effect at any time after it began.
		ended := never
		if entry.Return != nil {
			ended = nanoseconds(*entry.Return)
		}
		partitions[entry.Partition] = append(partitions[entry.Partition], porcupine.Operation{
			ClientId: entry.Client, Input: entry.operation, Call: nanoseconds(entry.Call), Return: ended,
		})
	}
	if err := scanner.Err(); err != nil {
		fail(fmt.Sprintf("%s: %v", file, err))
	}
	return partitions
}

func nanoseconds(milliseconds float64) int64 {
	return int64(milliseconds * 1e6)
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(2)
}
