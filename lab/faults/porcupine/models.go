package main

import (
	"slices"

	"github.com/anishathalye/porcupine"
)

// A key of the shared store: the value of its last write, or nothing. nil is nothing.
var keyModel = porcupine.Model{
	Init: func() any { return (*string)(nil) },
	Step: func(state, input, _ any) (bool, any) {
		value, asked := state.(*string), input.(operation)
		switch asked.Kind {
		case "write":
			return true, asked.Value
		case "read":
			return same(value, asked.Value), value
		case "remove":
			return asked.Found == nil || *asked.Found == (value != nil), (*string)(nil)
		}
		return false, value
	},
	Equal: func(one, other any) bool { return same(one.(*string), other.(*string)) },
}

func same(one, other *string) bool {
	if one == nil || other == nil {
		return one == other
	}
	return *one == *other
}

// A message in a queue.
type message struct {
	content string
	// It was acknowledged, and has not arrived: it has to.
	owed bool
	// A receive whose answer did not come may have leased it: later ones may overtake it.
	leased bool
}

// The pull queue of one agent: what was sent and is not known to be gone, the oldest first.
//
// A receive takes messages from the front. It may leave out those that may be leased, which come when the lease has run
// out. One whose deliveries may not have been recorded leaves its messages, which may come again. Nobody promises how
// soon a message that was sent can be fetched, so a receive may take fewer than there are.
var queueModel = porcupine.Model{
	Init: func() any { return []message{} },
	Step: func(state, input, _ any) (bool, any) {
		queue, asked := state.([]message), input.(operation)
		switch asked.Kind {
		case "send":
			return true, append(slices.Clone(queue), message{
				content: asked.Content, owed: asked.Certain, leased: asked.Leased,
			})
		case "receive":
			return receive(queue, asked)
		case "end":
			return !slices.ContainsFunc(queue, func(left message) bool {
				return left.owed && !slices.Contains(asked.Excused, left.content)
			}), queue
		}
		return false, queue
	},
	Equal: func(one, other any) bool { return slices.Equal(one.([]message), other.([]message)) },
}

func receive(queue []message, asked operation) (bool, any) {
	left := slices.Clone(queue)
	from := 0
	for _, content := range asked.Contents {
		at := slices.IndexFunc(left[from:], func(one message) bool { return one.content == content })
		if at < 0 {
			return false, queue
		}
		for _, passed := range left[from : from+at] {
			if !passed.leased {
				return false, queue
			}
		}
		if asked.Certain {
			left = slices.Delete(left, from+at, from+at+1)
			from += at
		} else {
			left[from+at].owed = false
			left[from+at].leased = true
			from += at + 1
		}
	}
	return true, left
}
