package provider

import (
	"fmt"
	"slices"
	"testing"
)

func TestUnknownKeysAreToldOnce(t *testing.T) {
	var u unknown
	if got := u.fresh([]string{"class_json.A", "class_json.B"}); !slices.Equal(got, []string{"class_json.A", "class_json.B"}) {
		t.Errorf("new keys: %v", got)
	}
	if got := u.fresh([]string{"class_json.B", "class_json.C"}); !slices.Equal(got, []string{"class_json.C"}) {
		t.Errorf("keys of which one is new: %v", got)
	}
	for i := range 2 * unknownMost {
		u.fresh([]string{fmt.Sprint(i)})
	}
	if len(u.keys) > unknownMost {
		t.Errorf("%d keys are remembered", len(u.keys))
	}
}
