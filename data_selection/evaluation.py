import torch
import torch.nn.functional as F
def knn_accuracy(a,la,b,lb,k=20):
    s=F.normalize(b,dim=1)@F.normalize(a,dim=1).T
    v=la[s.topk(k).indices]
    return (v.mode(1).values==lb).float().mean().item()*100
def probe_accuracy(a,la,b,lb):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    sc=StandardScaler().fit(a)
    m=LogisticRegression(max_iter=300).fit(sc.transform(a),la)
    return m.score(sc.transform(b),lb)*100
