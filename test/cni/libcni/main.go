// What libcni, the library that runtimes call plugins with, makes of a chain: a line of JSON for each step.
//
//	main PLUGIN_PATH CACHE CONFLIST CONTAINER_ID NETNS STEP...      STEP: validate add check del
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

type line struct {
	Step   string      `json:"step"`
	Answer interface{} `json:"answer,omitempty"`
	Error  string      `json:"error,omitempty"`
	Code   uint        `json:"code,omitempty"`
}

func main() {
	plugins, cache, file, id, netns := os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	network, err := libcni.ConfListFromFile(file)
	if err != nil {
		panic(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{plugins}, cache, nil)
	runtime := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}}}
	ctx := context.Background()
	for _, step := range os.Args[6:] {
		var answer interface{}
		switch step {
		case "validate":
			answer, err = cni.ValidateNetworkList(ctx, network)
		case "add":
			answer, err = cni.AddNetworkList(ctx, network, runtime)
		case "check":
			err = cni.CheckNetworkList(ctx, network, runtime)
		case "del":
			err = cni.DelNetworkList(ctx, network, runtime)
		}
		told := line{Step: step, Answer: answer}
		if err != nil {
			told = line{Step: step, Error: err.Error()}
			var failure *types.Error
			if errors.As(err, &failure) {
				told.Code = failure.Code
			}
		}
		text, _ := json.Marshal(told)
		fmt.Println(string(text))
	}
}
