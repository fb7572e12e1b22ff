package pvesim

import (
	"errors"
	"fmt"
	"net/http"
)

// apiError is a refusal as the API answers it: the message is also the reason
// in the status line.
type apiError struct {
	status  int
	message string
	params  map[string]string // "errors" of a 400
	noBody  bool              // 401, 595: the reason says it all
}

func (e *apiError) Error() string { return e.message }

// dief is PVE's "die": 500, or the end of a task.
func dief(format string, args ...any) error {
	return &apiError{status: http.StatusInternalServerError, message: fmt.Sprintf(format, args...)}
}

// paramErrors is a 400 that names parameters.
func paramErrors(errs map[string]string) error {
	return &apiError{status: http.StatusBadRequest, message: "Parameter verification failed.", params: errs}
}

func paramError(name, format string, args ...any) error {
	return paramErrors(map[string]string{name: fmt.Sprintf(format, args...)})
}

// denied is a 403; what may be empty.
func denied(what string) error {
	msg := "Permission check failed"
	if what != "" {
		msg += " (" + what + ")"
	}
	return &apiError{status: http.StatusForbidden, message: msg}
}

func noSuchVM(node string, vmid int) error {
	return dief("Configuration file 'nodes/%s/qemu-server/%d.conf' does not exist", node, vmid)
}

// asAPIError turns any error into an answer.
func asAPIError(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	return &apiError{status: http.StatusInternalServerError, message: err.Error()}
}
